"""all-MiniLM-L6-v2: texts -> (B, 384) float32."""
