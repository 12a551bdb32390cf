"""What an evaluation is asked for, judged before anything runs."""
