"""Whole graphs on other engines: `with entangle.engine("dask://host:8786"):`.

::

    chosen         which engine the runs of this thread go to; the blocks of `entangle.engine`
      │
    engine_run     a run: what the caller sends, hears and raises; its table, for records
      │ shipment   a flow as parcels: a plan for nodes that are alike, a payload for each node
      ▼
    dask_graph  ray_graph        parcels as tasks of that engine, and news of how they end
      ▼
    node_task      there: a plan, a payload and the values of other nodes become a value

The engine's scheduler decides what runs where, and its object store moves values from worker to
worker. What is ours: errors, attempts, deadlines, what is copied, records.
"""
