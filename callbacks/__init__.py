"""Onlookers of a training: hook, reduce, draw. They never steer the mathematics."""
