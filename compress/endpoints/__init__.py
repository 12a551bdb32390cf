"""A model behind an OpenAI-compatible endpoint: its address, the calls, what its server was seen to offer, and how it is asked for images and texts.

Only the host that a command names is called, straight: no proxy of the environment, no redirection, no address in an answer. A key
(`PARE_API_KEY`) goes into the requests' header and nowhere else.
"""
