/* Recorded sequences of operations: CUDA graphs by capture of the device's stream. Operations allocate nothing and never wait, so
 * whatever runs can be recorded; a product of a shape not seen before asks its library first, which is no work on the stream. */
#include "device.cuh"

#include <stdlib.h>

struct graph { cudaGraphExec_t exec; };

namespace CUDA_NS {

enum code cuda_graph_begin(struct device *dev, int *recording)
{
    *recording = 0;
    TRY(cuda_result("graph_begin", cudaStreamBeginCapture(dev->own->stream, cudaStreamCaptureModeThreadLocal)));
    *recording = dev->own->recording = 1;
    return OK;
}

enum code cuda_graph_end(struct device *dev, struct graph **graph)
{
    cudaGraph_t recorded = NULL;
    *graph = NULL;
    dev->own->recording = 0;
    TRY(cuda_result("graph_end", cudaStreamEndCapture(dev->own->stream, &recorded)));
    struct graph *g = (struct graph *)calloc(1, sizeof *g);
    enum code c = g == NULL ? fail(ERR_MEMORY, "graph_end: out of memory") : cuda_result("graph_end", cudaGraphInstantiate(&g->exec, recorded, 0));
    cudaGraphDestroy(recorded);
    if (c != OK)
        free(g);
    else
        *graph = g;
    return c;
}

enum code cuda_graph_run(struct device *dev, struct graph *graph)
{
    return cuda_result("graph_run", cudaGraphLaunch(graph->exec, dev->own->stream));
}

void cuda_graph_free(struct device *dev, struct graph *graph)
{
    if (graph == NULL)
        return;
    cudaStreamSynchronize(dev->own->stream);
    cudaGraphExecDestroy(graph->exec);
    free(graph);
}

} // namespace CUDA_NS
