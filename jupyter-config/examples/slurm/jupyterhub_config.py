"""BatchSpawner: each user's server is a job, here one of Slurm.

What for: a cluster. What fits is found out on the compute node that the job got, not where the hub
runs: a job on a node without a GPU gets the build for the processor.
What to change: partition, time and memory; the layers, to where `torchenv layer build` has put
them, or take them out. Where compute nodes have no network, layers or a folder of wheels are
needed.
Good to know: homes on a shared drive are slow for 12,000 files. A layer on a local disk of each
node costs a user a few megabytes.
"""

from torchenv_magic.hub import configure

c = get_config()

c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
c.JupyterHub.hub_ip = "0.0.0.0"
c.SlurmSpawner.req_partition = "gpu"
c.SlurmSpawner.req_runtime = "8:00:00"
c.SlurmSpawner.req_memory = "16G"
# A queue may be long.
c.SlurmSpawner.start_timeout = 600

configure(c, variants=("auto", "cpu"), wait=60, layers=("/opt/torchenv/layers",))
