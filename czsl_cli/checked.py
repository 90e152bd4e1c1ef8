"""Checks of a run's settings before it is made, for every command that makes runs."""

from __future__ import annotations

from czsl_cli.console import percent, warn

# Bytes of an attribute and an object that surely fit the tokens which the built-in CLIP reads: 32 less 5 of "a photo of".
SHORT_NAMES = 27


def checked(config, data) -> list[str]:
    """Check settings against their dataset before there is a run, and complete them; returns warnings.

    Raises
    ------
    CzslError
        Settings that contradict each other or the data; a CLIP that the method cannot use.
    """
    from czsl.clip.vocabulary import note_on_words, unknown_words
    from czsl.runs.tracker_names import tracker_names
    from czsl.runs.trackers import check_installed
    from czsl_cli.config import fix_paths
    from methods.registry import check_labels, config_class

    check_installed(tracker_names(config.log))
    config.remember(data.decode)
    partial_labels_of(config, data)
    check_labels(config.method, data.space)
    own = config_class(config.method)(**config.model)
    notes = [*own.notes(data.space), *own.data_notes(data), *loop_notes(config, own, data)]
    if note := note_on_words(unknown_words(config.clip, (*data.space.attributes, *data.space.objects))):
        notes.append(note)
    fix_paths(config)
    if _may_fail(config, data.space):
        from methods.checking import check_clip

        notes += check_clip(config, data.space)
    return notes


def _may_fail(config, space) -> bool:
    """Return whether the run's CLIP is worth the seconds of a check: the built-in one is always there, and cuts no short name."""
    from czsl.compositions import prompt_name

    if config.clip != "tiny" or config.clip_weights:
        return True
    longest = sum(max((len(prompt_name(n).encode()) for n in names), default=0) for names in (space.attributes, space.objects))
    return longest > SHORT_NAMES


def loop_notes(config, own, data) -> list[str]:
    """Warnings about settings of the training loop; UsageError for those that contradict each other."""
    from cluster.work.augmentation import check_loop
    from czsl.data.batches import stratified
    from methods.registry import config_class

    if config.stop_after and not len(data.split("val")):
        from czsl.errors import UsageError

        why = "no epoch can be called better than another"
        raise UsageError(f"stop_after={config.stop_after} without validation images", why, "leave it out, or import a val split")
    train = data.split("train")
    images = len(stratified(train.attr, train.obj, config.train_per_pair, config.seed))
    return check_loop(config, own.keeps_features, config_class(config.method).trains, images)


def partial_labels_of(config, data):
    """Return the candidate labels that a run is given instead of labels, checked before a cluster is started; None without any."""
    if config.partial_labels is None:
        return None
    from czsl.data.files.partial_labels import read_partial_labels
    from czsl.errors import UsageError
    from methods.registry import config_class

    if not config_class(config.method).trains:
        raise UsageError(f"{config.method} cannot use partial labels", "it needs no training", "leave out --partial-labels")
    labels = read_partial_labels(config.partial_labels, data)
    if labels.origin.noise_rate and not config.label_rescue:
        warn(
            f"{percent(labels.origin.noise_rate)} % of the images lack their true label: label_rescue=0.05 looks beyond their sets"
        )
    return labels
