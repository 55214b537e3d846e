#!lua flags=allow-oom
-- A client says how far it has processed the response: keep that, and tell the node that serves it.
-- Also at maxmemory: what is confirmed is what lets a reader go on.
-- KEYS 1 meta
-- ARGV 1 consumer  2 offset  3 the field of the meta that keeps it  4 bell (channel)  5 said under this epoch,
--      '' for the first time
-- Returns the epoch, or 0 when the response is gone, or has another epoch than 5.
-- Atomic, because a write to a meta that has just expired would make a key without a TTL.
-- Kept as OFFSET-EPOCH: of an older epoch it may lie in text that a failover lost. The bell may ring unheard;
-- the node looks at the field too, and so does the next attach by name.
local meta = redis.call('HMGET', KEYS[1], ARGV[3], 'epoch')
if not meta[2] or (ARGV[5] ~= '' and ARGV[5] ~= meta[2]) then
  return 0
end
local offset, epoch = string.match(meta[1] or '', '^(%d+)-(%d+)$')
if epoch ~= meta[2] or tonumber(ARGV[2]) > tonumber(offset) then
  redis.call('HSET', KEYS[1], ARGV[3], ARGV[2] .. '-' .. meta[2])
end
redis.call('SPUBLISH', ARGV[4], 'ack ' .. ARGV[1] .. ' ' .. ARGV[2])
return tonumber(meta[2])
