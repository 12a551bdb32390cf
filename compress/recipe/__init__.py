"""A recipe's text to frozen values, every problem at its line and column."""
