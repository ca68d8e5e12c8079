"""Train a convolutional network with clipped gradients, and see what clipping did.

    python image_classification.py                             digits, in half a minute
    python image_classification.py --data cifar-10-batches-py  CIFAR-10, in minutes
    python image_classification.py --limit 5                   another limit
    python image_classification.py --strategy agc              another strategy
    python image_classification.py --checkpoint run1           resumes when killed

Many scripts clip the norm at 0.5. For this network that is far too tight: on CIFAR-10
the norm is about 3.4, so every step is cut to a seventh of its length, and learning
slows down accordingly. The verdict says so, and suggests a better limit.
"""

from pathlib import Path

from command_line import Parser, whole_number

from image_data import ImageDataError, cifar10, digits


def options() -> Parser:
    """Say what the command line may ask for."""
    parser = Parser(__doc__, picture="image_classification.png", seeded=True)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="CIFAR-10's python batches")
    add("--strategy", default="clip_global_norm", metavar="NAME")
    add("--limit", type=float, metavar="X", help="default: the strategy's, or 0.5")
    add("--epochs", type=whole_number(1), default=10, metavar="N", help="default: 10")
    add("--checkpoint", type=Path, metavar="DIR", help="where each epoch is saved")
    return parser


def main() -> None:
    parser = options()
    args = parser.parse_args()
    try:
        data = cifar10(args.data) if args.data else digits()
    except ImageDataError as error:
        parser.error(str(error))

    # Only now: JAX takes seconds to import, and a wrong argument is told at once.
    from named_strategies import build

    try:
        clip, limit = build(args.strategy, args.limit)
    except ValueError as error:
        parser.error(str(error))
    from checkpoints import CheckpointError, Checkpoints
    from image_report import draw
    from image_training import train

    from optaxclip.tuning import verdict

    setting = f"{args.strategy}({limit:g}) on {data.name}"
    run = {"setting": setting, "seed": args.seed}
    sizes = len(data.train_labels), len(data.test_labels)
    print(f"{data.name}: {sizes[0]:,} images to train on, {sizes[1]:,} to test.")
    try:
        saved = Checkpoints(args.checkpoint, run) if args.checkpoint else None
        history, accuracies = train(data, clip, args.epochs, args.seed, saved)
    except CheckpointError as error:
        parser.error(str(error))
    print(history)
    said = " ".join(verdict(history).values())
    print(said)
    title = "\n".join([setting, *(f"test accuracy {x:.1%}" for x in accuracies[-1:])])
    draw(history, title, said, args.output)
    print(f"The picture is in {args.output}.")


if __name__ == "__main__":
    main()
