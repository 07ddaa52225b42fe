"""A server of one language model on this machine, with OpenAI's interface.

Data goes one way: `app` takes requests, which `protocol` reads; `engine` writes their texts in one
batch, in a thread of its own; what is written goes back as events, which `answers` puts into words.
"""
