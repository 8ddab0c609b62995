"""Pure maths on tensors. σ ∈ [0, 1], x_σ = (1−σ)·x₀ + σ·ε, v = ε − x₀; sampling goes from σ = 1 to σ = 0."""
