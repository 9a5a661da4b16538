return args is ["cpu-kernels", .. var rest] ? TenantLora.Bench.CpuKernels.Run(rest) : 2;
