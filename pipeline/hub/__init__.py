"""Model card and upload to the Hugging Face Hub."""
