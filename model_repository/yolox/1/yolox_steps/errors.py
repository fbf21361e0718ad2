"""The error that is the sender's to mend."""


class RequestError(ValueError):
    """A request that cannot be answered as it stands; the text is for the client and says what to change."""
