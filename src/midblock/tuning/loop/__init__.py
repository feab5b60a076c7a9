"""One course of training, from references to a saved result; `tune` is its plain use."""
