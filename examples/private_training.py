"""How much accuracy does privacy cost? DP-SGD on digits at several budgets.

    python private_training.py                  ε = 1, 3 and 8, in a minute
    python private_training.py --epsilon 0.5 2  other budgets
    python private_training.py --seeds 10       a smoother picture

Every example is drawn by itself, its gradient is clipped to a norm of 1, and normal
noise is added to the sum. optaxclip clips, and tells how far one example can move the
sum; Optax adds the noise, and dp-accounting says how much of it a budget (ε, δ) asks
for, where neighboring data sets differ in one example that is added or removed.

To read several curves off one set of examples costs the sum of their budgets, and
choosing learning rates and limits by looking at them costs more. JAX's random numbers
are not cryptographic: where it matters, take noise and samples from a library such as
jax-privacy; jax_privacy_clipping.py hands these gradients to its training plans.
"""

from command_line import Parser, whole_number


def main() -> None:
    parser = Parser(__doc__, picture="private_training.png")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--steps", type=whole_number(5), default=200, metavar="N")
    parser.add_argument("--seeds", type=whole_number(1), default=3, metavar="N")
    args = parser.parse_args()
    if not (min(args.epsilon) > 0 and 0 < args.delta < 1):
        parser.error("--epsilon must be above 0, and --delta between 0 and 1")

    # Only now: JAX takes seconds to import, and a wrong argument is told at once.
    from image_data import digits
    from private_digits import compare, draw

    found = compare(args.epsilon, args.delta, digits(), args.steps, args.seeds)
    for name, accuracies in found.items():
        each = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies[:, -1])
        print(f"{name:9} accuracy {accuracies[:, -1].mean():.1%} ({each})")
    draw(found, args.delta, args.output)
    print(f"The picture is in {args.output}.")


if __name__ == "__main__":
    main()
