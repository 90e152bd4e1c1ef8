"""Checkpoints as public programs write them, from methods of ours."""

from methods.reference import public_names


def public_state(method):
    """A method's state as the public program would have saved it."""
    public, state = public_names(method.name), {}
    for own, value in method.state_dict().items():
        if own in public.stacked:
            A = method.space.num_attributes
            for stem, rows in zip(public.stacked[own], (value[:A], value[A:]), strict=True):
                state |= {f"{stem}{k}": row.clone() for k, row in enumerate(rows)}
        elif own not in public.constants and own not in public.absent:
            state[public.public_name(own)] = value.clone()
    return state
