"""The two-layer head, its calibration, and the decision taken on its scores."""
