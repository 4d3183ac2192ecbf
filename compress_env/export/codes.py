"""Integer codes of weights and biases in the form that integer operators of runtimes want."""

from __future__ import annotations

import numpy as np

LARGEST_BIAS = float(1 << 30)
"""Largest code of a bias: with a sum of products added it must still fit 32 bits."""

_LARGEST_PAIR = 32767
_LARGEST_CODE = 127
_SMALLEST_SCALE = 1e-30


def column(numbers: np.ndarray, like: np.ndarray) -> np.ndarray:
    """One number for every output channel, in a form that multiplies weights (out, ...)."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def positive_scales(codes: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (out, ...) and scales (out,) that mean the same, with positive scales.

    A folded BatchNorm may have made a scale negative, or zero where it switches a channel off.
    """
    return codes * column(np.sign(scale), codes), np.maximum(np.abs(scale), _SMALLEST_SCALE)


def scales_for_bias(
    codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, input_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coarser codes where the bias, in units of both scales' product, would not fit 32 bits.

    Such a channel is almost constant: its bias is larger than all that the weights can add.
    """
    least = np.abs(bias) / (input_scale * LARGEST_BIAS)
    larger = np.maximum(least, scale)
    return np.rint(codes * column(scale / larger, codes)), larger


def finest_factors(codes: np.ndarray, bias: np.ndarray, highest_input: int) -> np.ndarray:
    """For every channel the factor on weight codes at which its bias is closest to an integer.

    An integer convolution adds an integer bias, and one unit of it is not small where codes have
    few bits. Codes of few bits leave room in their byte: multiplying them makes the unit smaller.

    Args:
        codes: weight codes (out, ...).
        bias: (out,) in units of one product of codes.
        highest_input: the largest code of the input; limits the factor so that no kernel, in 16
            bits on some machines, can saturate.

    Returns:
        int64 (out,), at least 1.
    """
    largest = np.abs(codes).reshape(len(codes), -1).max(1, initial=1.0)
    limit = min(_LARGEST_CODE, _LARGEST_PAIR // (2 * highest_input)) // largest
    factors = np.arange(1, _LARGEST_CODE + 1)[:, None]
    products = factors * bias
    error = np.abs(products - np.rint(products)) / factors
    error[1:][(factors[1:] > limit) | (np.abs(products[1:]) > LARGEST_BIAS)] = np.inf
    best: np.ndarray = factors[error.argmin(0), 0]
    return best
