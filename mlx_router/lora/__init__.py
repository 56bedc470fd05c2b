"""LoRA adapters: manifests, checks, and the bank that serves many of them on one base."""
