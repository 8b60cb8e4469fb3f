"""Training: one loop, three schedules of the pressure on routing (curriculum, joint, budget), bit-exact resume."""
