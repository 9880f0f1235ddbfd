"""Looking at models without loading them, and making small ones."""
