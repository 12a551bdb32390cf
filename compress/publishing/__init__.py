"""What goes out beside a model: chat templates, Ollama's Modelfiles, model cards."""
