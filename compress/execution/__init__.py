"""Plans carried out: stages, their contract, and the process that reopens what they leave."""
