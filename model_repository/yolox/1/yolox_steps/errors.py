"""The error that is the sender's to mend."""


class RequestError(ValueError):
    """A request that cannot be answered as it stands; the text is for the client and says what to change."""


NO_BYTES = "found no bytes at all; send the content of an image file"


def of_image(index: int, count: int, text: str) -> str:
    """Says which image of a request an error is about, where there are several."""
    return f"image {index} of {count} (counted from 0): {text}" if count > 1 else text
