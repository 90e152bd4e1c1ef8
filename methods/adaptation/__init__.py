"""Adaptation while testing: layers over methods that let the unlabelled stream of images move the compositions' scores."""
