"""From a history to recommendations: one catalogue, one recommender, explanations, index, export."""
