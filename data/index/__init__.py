"""What the plan knows of a source without reading it: built by many readers, checked, opened."""
