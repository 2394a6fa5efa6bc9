"""The candidate: the update that somebody wants to deploy, checked, compared with the base field by field, built and measured."""
