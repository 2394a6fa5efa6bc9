"""What tests share: planted data, bland texts, published books, golden values, tiers, and the imports of the helpers."""
