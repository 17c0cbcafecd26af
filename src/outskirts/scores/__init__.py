"""Scores: one file each; a file name is the name on the command line. Every module defines `Score`."""
