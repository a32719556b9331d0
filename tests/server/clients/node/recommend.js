// Usage: node recommend.js ADDRESS PROTO_DIR METHOD REQUEST_JSON; prints the answer, or the error, as JSON.
'use strict';

const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protoDir, method, request] = process.argv.slice(2);
const definition = loader.loadSync('recserve/v1/recommender.proto', {
  includeDirs: [protoDir],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: false,
  oneofs: false,
});
const { RecommenderService } = grpc.loadPackageDefinition(definition).recserve.v1;
const client = new RecommenderService(address, grpc.credentials.createInsecure());

client[method](JSON.parse(request), { deadline: Date.now() + 10_000 }, (error, answer) => {
  client.close();
  console.log(JSON.stringify(error ? { code: error.code, details: error.details } : answer));
});
