"""What operates relay; no part of the package."""
