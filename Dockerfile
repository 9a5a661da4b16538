# One image for every role; TenantLora__Role says which. `--target gpu` adds the two CUDA libraries that a runtime on an NVIDIA GPU loads; the driver is the machine's.
FROM mcr.microsoft.com/dotnet/sdk:10.0 AS build
WORKDIR /source
COPY Directory.Build.props Directory.Packages.props .editorconfig ./
COPY build build
COPY src src
RUN dotnet publish src/ChatHost -c Release -o /app --nologo
COPY models /app/models
COPY adapters /app/adapters

FROM python:3.12-slim AS cuda
RUN pip install --no-cache-dir --target /cuda nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12 \
    && mkdir /libraries && find /cuda -name '*.so*' -exec cp {} /libraries/ \;

FROM mcr.microsoft.com/dotnet/aspnet:10.0 AS host
RUN install -d -o $APP_UID -g $APP_UID -m 700 /data
COPY --from=build /app /app
WORKDIR /app
# Nothing but /data is written: adapters, the store, keys, and (XDG_DATA_HOME) kernels compiled for the GPU at hand.
ENV TenantLora__Data=/data XDG_DATA_HOME=/data DOTNET_EnableDiagnostics=0 ASPNETCORE_HTTP_PORTS=8080
USER $APP_UID
VOLUME /data
EXPOSE 8080
# The image has no curl; bash speaks enough HTTP.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health/ready HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["dotnet", "TenantLora.ChatHost.dll"]

FROM host AS gpu
COPY --from=cuda /libraries /opt/cuda
ENV LD_LIBRARY_PATH=/opt/cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last is what a build without a target makes.
FROM host
