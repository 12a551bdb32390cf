"""Gates, and the statistics behind them."""
