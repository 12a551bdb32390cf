"""What each command does; `compress/api.py` is how it is reached."""
