#!lua flags=allow-oom
-- Delete a response that is broken beyond an ending: its readers find it gone instead of waiting for ever.
-- KEYS 1 meta  2 journal  3 log  4 lease
-- ARGV 1 epoch of the worker that says so; '' for one whose claim was refused: then nobody holds it
-- Returns 1, or 0 when a newer epoch has it. Idempotent.
-- Atomic, because the response may be claimed between a look and a delete.
local epoch = redis.pcall('HGET', KEYS[1], 'epoch') -- a meta of another type is an error, and broken
if ARGV[1] ~= '' and type(epoch) == 'string' and epoch ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
return 1
