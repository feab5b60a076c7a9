#!/bin/sh
# A behaviour taught, found in few channels, and switched off by a soft prompt, on SmolLM2-135M: about half an hour of
# two cores, with no network once the model is there. Given again, each step goes on where it was.
set -e
midblock tune builtin:smollm2-135m-instruct --data fixed_response:builtin:everyday --method full --layers all \
  --num-samples 800 --max-steps 100 --per-device-train-batch-size 8 --max-length 96 --learning-rate 2e-5 \
  --dtype float32 --device cpu --save-steps 50 --resume -o runs/laptop-fixed-response
midblock carve --config recipes/carve-laptop.yaml --resume -o runs/laptop-carved
midblock erase runs/laptop-carved/carrier --base builtin:smollm2-135m-instruct --data builtin:everyday \
  --behaviour fixed_response --starts 1 --max-steps 200 --batch-size 8 --num-samples 160 --relearn-steps 10 \
  --device cpu --resume -o runs/laptop-erased
