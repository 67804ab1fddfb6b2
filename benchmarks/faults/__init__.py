"""Trainings that are disturbed: their server killed, the link choked, objects lost, the store stopped."""
