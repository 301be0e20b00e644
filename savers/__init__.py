"""Where savers and large models come from: networks, distillation, training (needs torch)."""
