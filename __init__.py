"""On-policy distillation of large language models on a Ray cluster (the MiniLLM method)."""

__version__ = "0.1.0"
