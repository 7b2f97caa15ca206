"""The purgatory: guest code that checks a loaded crash image. Its object is data for Python."""
