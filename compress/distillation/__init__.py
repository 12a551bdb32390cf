"""What a plan can say of teachers and students, from configs alone."""
