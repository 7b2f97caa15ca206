"""Guest code of this project, compiled: how, with which options, by which compiler."""
