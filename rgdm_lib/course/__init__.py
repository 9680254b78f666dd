"""The course around the library: notebooks, presets, results, claims, exercises, command line."""
