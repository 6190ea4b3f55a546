-- After a restore or an insert by hand, a load_id beyond the sequence would hide later loads from the models.

with

newest as (

    select max(load_id) as load_id from {{ source('raw', 'sqs_messages') }}

)

select newest.load_id
from newest
cross join raw.load_id_seq
where newest.load_id > load_id_seq.last_value
