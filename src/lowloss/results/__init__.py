"""Results for notebooks, other programs and other people's tools."""
