"""Programs to read and to run, one idea each: `python -m entangle.examples.NAME`.

example                   an expression is a graph, and its parts run in processes: begin here
example2                  workflows made of workflows, and a task that asks a web server
example3                  two kernels in parallel, each on a GPU of its own
example4                  memory that several processes write to at the same time
example5                  graphs that grow while they run
example6                  threads for waiting and processes for computing, in one graph
example_graph             the graph as nested dicts, printed as JSON
example_graph_future      the graph, as a future
example_with_future       a result, as a future: callbacks and `await`
map_example               ten thousand small items
fetch_example             download, parse and add up, with retries and a limit of the host
images_example            thumbnails of a folder, with a progress bar and one bad file
sweep_example             a parameter sweep with scikit-learn
interleavedexample        calls that wait for their two neighbours, not for a whole row
multitriggerexample       one graph, run once for each of many parameters
retry_example             attempts that fail, and what happens then
timeoutexample            tasks that take too long, and what happens then
schedulerexample          tasks that get a CPU of their own
schedulerexample2         a scheduler class of your own
gpuexample                a chain of functions whose array stays on the GPU
cached_analysis_example   values that are found again after an edit
durableexample            a pipeline that is killed twice, and goes on
web_app_example           a web app that runs a small graph for each request
dataflowexample           values pushed through a graph of functions
dataflowexample2          threads that fetch and processes that compute, in one dataflow
lambdaexample             a dataflow that takes a different way for different values
listexample               a value that goes several ways
listexample2              choices within choices: an inbox that sorts itself
streamexample             CSV files that keep coming, summed up in windows
dockerexample             a function in a container
aiexample                 a small neural network, trained in a container
hosts                     the hosts of the next two
sshschedulerexample       a workflow on one host that calls tasks on two others
sshdataflowexample        a dataflow over three hosts
mixedplacesexample        a container, another host, a Slurm cluster and this machine
cloudsexample             a container, AWS Lambda, AWS Batch and this machine
lineageexample            what a result was made from, and what ran where
pipelinesexample          two pipelines, and one graph database of both
"""
