"""What a network costs: memory, time, multiply-adds by module, and budgets for them."""
