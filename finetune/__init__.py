"""Fine-tuning with QLoRA, LoRA or all parameters, from data to scored predictions."""
