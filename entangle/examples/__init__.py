"""Programs to read and to run, one idea each: `python -m entangle.examples.NAME`.

dataflowexample        values pushed through a graph of functions, and a callback that sees them
dataflowexample2       threads that fetch and processes that compute, in one dataflow
example                an expression is a graph; what of it ran where
example2               workflows made of workflows, and a task that asks a web server
example3               two kernels in parallel, each on a GPU of its own
example4               memory that several processes write to at the same time
example5               graphs that grow while they run
example6               threads for waiting and processes for computing, in one graph
example_graph          the graph as nested dicts, printed as JSON
example_graph_future   the graph, as a future
example_with_future    a result, as a future: callbacks and `await`
gpuexample             a chain of functions whose array stays on the GPU
lambdaexample          a dataflow that takes a different way for different values
listexample            a value that goes several ways; how many is decided while it runs
listexample2           choices within choices: an inbox that sorts itself
retry_example          attempts that fail, and what happens then
schedulerexample       tasks that get a CPU of their own
schedulerexample2      a scheduler class of your own
streamexample          CSV files that keep coming: parsed by processes, summed up in windows
timeoutexample         tasks that take too long, and what happens then
"""
