"""Train with several processes, and go on from a checkpoint where one of them died.

Parameters, gradients and the optimizer's state are spread over all devices (FSDP). The
code is that of one device: the clipper, the guard and their reports need not be told
about the mesh, since JAX sums over all processes. One batch in the middle is broken,
and one is a hundred times too large. There is no picture, since there is nothing to
see: the parameters become what they would in one process.

    python examples/distributed.py                   # one process, on all its devices
    python examples/distributed.py --processes 2     # two processes on this machine

With `--checkpoint DIR` a run that was killed goes on where it was when it is started
again, with as many processes or devices as there are then. On several machines, start
the script on each, with one address for all:

    python examples/distributed.py --processes 2 --process 0 --coordinator host0:7777
    python examples/distributed.py --processes 2 --process 1 --coordinator host0:7777
"""

import functools
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from command_line import Parser, until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxclip

WIDTH, BATCH = 64, 64
BROKEN, LARGE = 11, 14  # steps


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_all(processes):
    """Start the processes on this machine; where one dies, end the others."""
    address = f"localhost:{free_port()}"
    command = [sys.executable, *sys.argv, "--coordinator", address, "--process"]
    # The others ignore Ctrl-C, at which this process ends them.
    ended = signal.signal(signal.SIGINT, signal.SIG_IGN)
    children = [subprocess.Popen([*command, str(i)]) for i in range(processes)]
    signal.signal(signal.SIGINT, ended)
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                return 1
            time.sleep(0.05)
        return max(abs(child.returncode) for child in children)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def batch_of(step):
    """Inputs and targets, which every process makes from the number of the step."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (BATCH, 8))
    targets = jnp.sin(noise[:, :1])
    size = jnp.where(step == LARGE, 100.0, jnp.where(step == BROKEN, jnp.nan, 1.0))
    return noise, targets * size


def init(key):
    """Two layers."""
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (8, WIDTH)) / 8**0.5},
        "output": {"kernel": jax.random.normal(second, (WIDTH, 1)) / WIDTH**0.5},
        "bias": jnp.zeros(WIDTH),
    }


def loss_of(params, inputs, targets):
    hidden = jnp.tanh(inputs @ params["hidden"]["kernel"] + params["bias"])
    return jnp.mean((hidden @ params["output"]["kernel"] - targets) ** 2)


def shardings_of(optimizer, params, mesh):
    """Shard the first dimension of all parameters, and of the state that is as large.

    A clipper's memory of units or tensors has fewer numbers than the parameter, and
    keeps only the axes of dimensions that are still there.
    """
    of_params = jax.tree.map(lambda _: NamedSharding(mesh, P("data")), params)

    def beside(part, param):
        sides = zip(part.shape, param.shape, ("data",), strict=False)
        kept = (axis if own == whole else None for own, whole, axis in sides)
        return NamedSharding(mesh, P(*kept))

    of_state = optax.tree.map_params(
        optimizer,
        beside,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )
    return of_params, of_state


def open_checkpoints(folder):
    """Orbax writes beside the old checkpoint, and renames when all is there."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=5)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def restored(manager, like, shardings):
    """The latest checkpoint, on the mesh of today, and the number of its step."""
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return None, 0
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings
    )
    return manager.restore(step, args=ocp.args.StandardRestore(wanted)), step


def programs(optimizer, mesh, shardings):
    """The first parameters and state, from a key, and a step of training."""

    @functools.partial(jax.jit, out_shardings=shardings)
    def begin(key):
        params = init(key)
        return params, optimizer.init(params)

    @functools.partial(
        jax.jit,
        donate_argnums=(0, 1),
        out_shardings=(*shardings, NamedSharding(mesh, P())),
    )
    def train_step(params, state, step):
        given = jax.lax.with_sharding_constraint(
            batch_of(step), NamedSharding(mesh, P("data"))
        )
        loss, grads = jax.value_and_grad(loss_of)(params, *given)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return begin, train_step


def train(steps, folder, output):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    optimizer = optaxclip.skip_nonfinite(
        optax.chain(optaxclip.zclip(warmup_steps=8), optax.adam(1e-2))
    )
    key = jax.random.key(1)
    shardings = shardings_of(optimizer, jax.eval_shape(init, key), mesh)
    begin, train_step = programs(optimizer, mesh, shardings)
    say = print if jax.process_index() == 0 else lambda *_, **__: None
    first, kept = 0, None
    manager = open_checkpoints(folder) if folder else None
    if manager:
        kept, first = restored(manager, jax.eval_shape(begin, key), shardings)
    params, state = begin(key) if kept is None else kept
    if first:
        say(f"goes on after step {first}", flush=True)
    for step in range(first, steps):
        params, state, loss = train_step(params, state, jnp.int32(step))
        if manager:
            import orbax.checkpoint as ocp

            manager.save(step + 1, args=ocp.args.StandardSave((params, state)))
        if (step + 1) % 10 == 0:
            say(f"step {step + 1:4}  loss {float(loss):.4f}", flush=True)
    if manager:
        manager.close()
    report = jax.device_get(optaxclip.report(state))
    for name, number in report.items():
        say(f"{name:28} {float(number):.4f}")
    whole = multihost_utils.process_allgather(params, tiled=True)
    if output and jax.process_index() == 0:
        leaves = jax.tree_util.tree_leaves_with_path(whole)
        named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        np.savez(output, **named, **report)
    assert report["skip_nonfinite/total"] == (steps > BROKEN), "the broken batch"
    return whole, report


@until_interrupted(told="it was interrupted; with --checkpoint it can go on from there")
def main():
    parser = Parser(__doc__)
    parser.add_argument("--processes", type=int, default=1, help="how many in all")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--devices", type=int, help="virtual CPU devices a process")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--checkpoint", type=Path, help="a folder that all can reach")
    parser.add_argument("--output", type=Path, help="an .npz file for the result")
    given = parser.parse_args()
    if given.processes > 1 and given.process is None:
        sys.exit(start_all(given.processes))
    if given.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices)
    if given.processes > 1:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)
    train(given.steps, given.checkpoint, given.output)


if __name__ == "__main__":
    main()
