"""Pure mathematics on arrays and trees."""
